// A resource group with all that the worker of one sample needs. `azd -C azure up` deploys it, and then the worker.

targetScope = 'subscription'

@description('The name of the azd environment, and of the resource group after "rg-".')
@minLength(1)
@maxLength(64)
param environmentName string

@description('A region that has the Durable Task Scheduler, Container Apps and the model.')
param location string

@description('Who deploys: receives the roles that a client, or a worker on a laptop, needs.')
param principalId string = ''

@description('The folder of the sample. 03 also gets a Redis.')
param sample string

@description('The image of the worker. Empty before the first deployment: then a placeholder runs.')
param image string = ''

@description('Consumption is paid for each action, Dedicated for each month.')
@allowed(['Consumption', 'Dedicated'])
param schedulerSku string

param modelName string
param modelVersion string

var tags = { 'azd-env-name': environmentName }

resource group 'Microsoft.Resources/resourceGroups@2024-03-01' = {
  name: 'rg-${environmentName}'
  location: location
  tags: tags
}

module resources 'resources.bicep' = {
  name: 'resources'
  scope: group
  params: {
    location: location
    tags: tags
    principalId: principalId
    sample: sample
    image: image
    schedulerSku: schedulerSku
    modelName: modelName
    modelVersion: modelVersion
  }
}

// For azd.
output AZURE_CONTAINER_REGISTRY_ENDPOINT string = resources.outputs.registryServer
output AZURE_RESOURCE_GROUP string = group.name

// For a client: `azd -C azure env get-values` prints them.
output ENDPOINT string = resources.outputs.schedulerEndpoint
output TASKHUB string = resources.outputs.taskHubName
output AZURE_OPENAI_ENDPOINT string = resources.outputs.modelEndpoint
output AZURE_OPENAI_CHAT_DEPLOYMENT_NAME string = resources.outputs.modelDeployment
